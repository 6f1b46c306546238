"""Graph -> Graph: the passes, their manager and the pipelines."""
