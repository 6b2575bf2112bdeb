"""What happens to the groups while an SAE trains, as data and as charts."""
