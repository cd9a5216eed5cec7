"""What `sprat bench gateway` compares: each system before the same stub engine, in processes of its own."""
