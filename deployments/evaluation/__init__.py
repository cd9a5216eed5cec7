"""`sprat eval agents`: what routing is worth on calls of agents, answered by the real models of a cluster."""
