"""What the fixes of errors say: code that repairs a call, and other names of its arguments."""
