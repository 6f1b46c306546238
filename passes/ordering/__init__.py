"""Orders of tasks that keep few bytes alive: heuristics, beam search, exact search, and dividing at cuts."""

from passes.ordering.divide import Ordering, best_order
from passes.ordering.problem import Problem, problem_of

__all__ = ["Ordering", "Problem", "best_order", "problem_of"]
