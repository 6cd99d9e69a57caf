//! What can be computed: the vocabulary between models and devices, and its plainest implementation.

#![forbid(unsafe_code)]
