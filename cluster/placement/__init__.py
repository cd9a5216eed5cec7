"""Which pools run on which nodes, which adapters sit on which replicas. Pure."""
