"""What a checkpoint asks for, what its files hold, and how its model compares with transformers'. Changes nothing."""
