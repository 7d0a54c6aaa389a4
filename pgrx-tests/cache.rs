//! What a backend keeps: the least used makes room, and what a relation's change makes old is read again.

use crate::pg::catalog::cache::{Cache, ReadOf, tell};
use pgrx::pg_sys;
use pgrx::prelude::*;

#[pg_extern(sql = false)]
fn test_what_was_not_used_for_longest_makes_room() {
    let cache: Cache<String, i32> = Cache::new(2);
    let key = |name: &str| name.to_owned();
    cache.keep(key("a"), 1, ReadOf::nothing());
    cache.keep(key("b"), 2, ReadOf::nothing());
    assert_eq!(cache.get("a"), Some(1));
    cache.keep(key("c"), 3, ReadOf::nothing());
    assert_eq!(
        (cache.get("a"), cache.get("b"), cache.get("c")),
        (Some(1), None, Some(3))
    );
    cache.keep(key("c"), 4, ReadOf::nothing());
    assert_eq!((cache.get("a"), cache.get("c")), (Some(1), Some(4)));
    let read = || -> Result<i32, String> { Ok(5) };
    assert_eq!(cache.get_or(&key("d"), read), Ok(5));
    assert_eq!(cache.get_or(&key("d"), || Err("it is there")), Ok(5));
}

#[pg_extern(sql = false)]
fn test_what_a_change_makes_old_is_forgotten() {
    Spi::run("CREATE TABLE first (x int); CREATE TABLE second (x int)").expect("tables");
    let oid = |name: &str| {
        let statement = format!("SELECT '{name}'::regclass::oid");
        let found = Spi::get_one::<pg_sys::Oid>(&statement).expect("a look-up");
        found.expect("a table")
    };
    let (first, second) = (oid("first"), oid("second"));
    let cache: Cache<i32, &str> = Cache::new(8);
    cache.keep(1, "first", ReadOf::now(&[first]));
    cache.keep(2, "second", ReadOf::now(&[second]));
    cache.keep(3, "both", ReadOf::now(&[first, second]));
    let before = ReadOf::now(&[first]);
    tell(Some(first));
    // The statement's end makes what it told known to itself.
    Spi::run("SELECT 1; CREATE TABLE third (x int)").expect("a statement");
    assert_eq!(
        (cache.get(&1), cache.get(&2), cache.get(&3)),
        (None, Some("second"), None)
    );
    cache.keep(1, "read before the change", before);
    assert_eq!(cache.get(&1), None);
    cache.keep(1, "read behind it", ReadOf::now(&[first]));
    assert_eq!(cache.get(&1), Some("read behind it"));
}
