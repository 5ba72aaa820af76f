"""What a step of a program computes: the ops, in the forms that tables name."""
