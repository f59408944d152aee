"""One model computed by several processes together: what they exchange, what they tell one another, how they begin and end."""
