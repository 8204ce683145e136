"""Instance configurations: enumerated, pruned with the reason kept, priced by simulation."""
