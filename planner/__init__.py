"""The analytical planner: words -> request -> blocks of ops -> ledger -> estimate -> search -> report."""
