"""One command in several processes: their meeting, what they agree on, and how they end."""
