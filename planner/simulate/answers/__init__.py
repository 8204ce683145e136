"""What a finished simulation tells: percentiles, levels over time, tenants, a summary, a timeline."""
