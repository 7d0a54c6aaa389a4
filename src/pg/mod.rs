//! The part that knows Postgres: the only room that may import pgrx.
