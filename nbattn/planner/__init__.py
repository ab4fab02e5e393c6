"""The planner: gathers the candidates of every family, ranks them, and proves the chosen plan."""
