"""Texts by their meaning, without a neural network on the way: static embeddings, and topics by them."""
