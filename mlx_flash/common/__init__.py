"""What every other folder may use: errors, numbers as people give them, and what MLX does without promising it."""
