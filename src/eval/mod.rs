//! Retrieval measures: nDCG, MAP, MRR, recall.
