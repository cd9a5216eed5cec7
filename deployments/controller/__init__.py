"""The slow loops that one process of a cluster runs: observe, ask `cluster`, write what shall be."""
