//! A disk that is full: the statement fails, the server goes on, and nothing is left behind.

use crate::data::{clustered, recall, vector_table};
use crate::support::{Cluster, Sql, run, settings};
use std::path::PathBuf;
use std::process::Command;

/// A small file system, unmounted when dropped.
struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn a_build_on_a_full_disk_fails_and_can_be_repeated_elsewhere() {
    let Some(user) = &settings().user else {
        eprintln!("SKIPPED: only root can mount a small file system");
        return;
    };
    let place = settings().scratch.join("small");
    std::fs::create_dir(&place).expect("a folder");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=3m,mode=777", "tmpfs"])
        .arg(&place)
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: mount is not allowed here");
        return;
    }
    let mount = Mount(place);
    run(Command::new("chown").arg(user).arg(&mount.0));

    let cluster = Cluster::new();
    cluster
        .connect("postgres")
        .run(&format!("CREATE TABLESPACE small LOCATION '{}'", mount.0.display()));
    let mut client = cluster.text_database("full_disk");
    vector_table(&mut client, "t", "vector", &clustered(20_000, 64, 81));
    let failure = client.failure("CREATE INDEX nearest ON t USING situ (v vector_l2_ops) TABLESPACE small");
    assert_eq!(failure.code, "53100", "{failure:#?}");
    failure.is("53100", "no space left");
    assert_eq!(
        client.one::<i64>("SELECT count(*) FROM pg_class WHERE relname = 'nearest'"),
        0
    );

    client.run("CREATE INDEX nearest ON t USING situ (v vector_l2_ops)");
    let share = recall(&mut client, "t", "v <-> $q", &clustered(5, 64, 82), 10);
    assert!(share >= 0.95, "recall@10 is {share}");

    // Inserts into an index on the full disk fail one by one; what was there stays searchable.
    client.run("CREATE TABLE few (id bigint, v vector(64)); INSERT INTO few SELECT * FROM t LIMIT 100");
    client.run("CREATE INDEX few_nearest ON few USING situ (v vector_l2_ops) TABLESPACE small");
    let failure = client.failure("INSERT INTO few SELECT id + 100000, v FROM t");
    assert_eq!(failure.code, "53100", "{failure:#?}");
    assert_eq!(client.one::<i64>("SELECT count(*) FROM few"), 100);
    let share = recall(&mut client, "few", "v <-> $q", &clustered(5, 64, 83), 10);
    assert!(share >= 0.95, "recall@10 is {share}");
    drop(client);
    drop(cluster);
    drop(mount);
}
