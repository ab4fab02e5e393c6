"""The planner: requests, rewrites, programs, costs, and the plan that shows them all."""
