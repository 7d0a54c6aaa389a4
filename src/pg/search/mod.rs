//! What a question is and how it is answered: the query with its options, rows that the caller may see, rounds of feedback, the
//! distance of a document outside of an index. The access method below and the SQL functions above stand on it.

pub mod document;
pub mod gates;
pub mod index_search;
pub mod named;
pub mod profiles;
pub mod query;
pub mod question;
pub mod row_key;
pub mod rows;
pub mod second_round;
