"""Pure torch: attention with its log-sum-exp, and the float64 definitions that judge it."""
