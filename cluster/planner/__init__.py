"""What the fleet shall be: pure functions of what was observed."""
