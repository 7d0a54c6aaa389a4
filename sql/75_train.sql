-- Training of bridges: a job is filed, a background worker of its own trains, whoever called waits or goes on.

CREATE TABLE situ_internal.training_jobs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL,
    name text NOT NULL,
    owner situ.role NOT NULL,
    arguments jsonb NOT NULL,
    search_path text NOT NULL,
    state text NOT NULL DEFAULT 'queued'
        CHECK (state IN ('queued', 'running', 'paused', 'done', 'rejected', 'failed', 'cancelled')),
    request text NOT NULL DEFAULT 'run' CHECK (request IN ('run', 'pause', 'cancel')),
    step bigint,
    steps bigint,
    first_step bigint,
    loss double precision,
    held_out double precision,
    filed_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    started_at timestamptz,
    updated_at timestamptz,
    finished_at timestamptz,
    errcode integer,
    error text,
    detail text,
    hint text,
    checkpoint bytea
);
ALTER TABLE situ_internal.training_jobs ALTER COLUMN checkpoint SET STORAGE EXTERNAL;
COMMENT ON TABLE situ_internal.training_jobs IS
    'trainings with their arguments and checkpoints; seen through the view situ.training, not dumped';

CREATE FUNCTION situ_internal.training_worker(id bigint) RETURNS integer
    LANGUAGE c VOLATILE STRICT PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'training_worker_wrapper';
COMMENT ON FUNCTION situ_internal.training_worker(bigint) IS
    'the process that trains a job of this database, 0 while it starts, NULL without one: behind the view situ.training';

-- A barrier: functions of whoever reads it see the rows that it shows and no others.
CREATE VIEW situ.training WITH (security_barrier) AS
    SELECT j.id, j.kind, j.name, j.owner,
           CASE WHEN j.state = 'running' AND w.worker IS NULL THEN 'interrupted' ELSE j.state END AS state,
           j.step, j.steps, j.loss, j.held_out,
           CASE WHEN j.state = 'running' AND j.step > j.first_step
                THEN (j.updated_at - j.started_at) * (j.steps - j.step)::double precision
                     / (j.step - j.first_step)::double precision END AS eta,
           j.filed_at, j.started_at, j.updated_at, j.finished_at,
           pg_catalog.octet_length(j.checkpoint) AS checkpoint_bytes, j.arguments, j.error, w.worker
      FROM situ_internal.training_jobs j
     CROSS JOIN LATERAL (SELECT situ_internal.training_worker(j.id) AS worker) w
     WHERE pg_catalog.pg_has_role(j.owner::oid, 'USAGE');
COMMENT ON VIEW situ.training IS
    'the caller''s trainings: state (queued, running, paused, interrupted, done, rejected, failed, cancelled), step, loss, held-out figure, the time that is left';
GRANT SELECT ON situ.training TO PUBLIC;

CREATE FUNCTION situ_internal.file_training(
    kind text,
    name text,
    index regclass,
    model text,
    passages regclass,
    pairs regclass,
    side text,
    scheme text,
    options jsonb,
    seed bigint,
    replace boolean
) RETURNS bigint
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'file_training_wrapper';
COMMENT ON FUNCTION situ_internal.file_training(text, text, regclass, text, regclass, regclass, text, text, jsonb, bigint, boolean) IS
    'files a training and returns its number; a step of situ.train';
CREATE FUNCTION situ.resume_training(id bigint) RETURNS integer
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'resume_training_wrapper';
COMMENT ON FUNCTION situ.resume_training(bigint) IS
    'goes on with a training that is paused or was interrupted, and returns the process of its worker';

CREATE FUNCTION situ_internal.await_training(id bigint) RETURNS boolean
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'await_training_wrapper';
COMMENT ON FUNCTION situ_internal.await_training(bigint) IS
    'whether a training goes on, after a moment; raises what it failed with; a step of situ.train';

CREATE FUNCTION situ.pause_training(id bigint) RETURNS void
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pause_training_wrapper';
COMMENT ON FUNCTION situ.pause_training(bigint) IS
    'halts a training at its next step until situ.resume_training';

CREATE FUNCTION situ.cancel_training(id bigint) RETURNS void
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cancel_training_wrapper';
COMMENT ON FUNCTION situ.cancel_training(bigint) IS 'ends a training at its next step; for its owner';

CREATE FUNCTION situ.drop_training(id bigint) RETURNS void
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'drop_training_wrapper';
COMMENT ON FUNCTION situ.drop_training(bigint) IS
    'removes a training that does not run, with its checkpoint; the bridge that it made stays';

CREATE PROCEDURE situ.train(
    kind text,
    name text,
    index regclass DEFAULT NULL,
    model text DEFAULT NULL,
    passages regclass DEFAULT NULL,
    pairs regclass DEFAULT NULL,
    side text DEFAULT NULL,
    scheme text DEFAULT NULL,
    options jsonb DEFAULT NULL,
    seed bigint DEFAULT NULL,
    replace boolean DEFAULT false,
    wait boolean DEFAULT true
)
    LANGUAGE plpgsql AS $$
DECLARE
    job bigint;
BEGIN
    job := situ_internal.file_training(kind, name, index, model, passages, pairs, side, scheme, options, seed, replace);
    COMMIT;
    PERFORM situ.resume_training(job);
    COMMIT;
    IF NOT wait THEN
        RAISE NOTICE 'training % was started: SELECT * FROM situ.training', job;
        RETURN;
    END IF;
    WHILE situ_internal.await_training(job) LOOP
        COMMIT;
    END LOOP;
END $$;
COMMENT ON PROCEDURE situ.train(text, text, regclass, text, regclass, regclass, text, text, jsonb, bigint, boolean, boolean) IS
    'trains a bridge (adapter, lexsem, situate, feedback, xrag) in a background worker and stores it in situ.bridges';
-- situ_internal.file_training looks whether its caller may execute this.
REVOKE ALL ON PROCEDURE situ.train FROM PUBLIC;
GRANT EXECUTE ON PROCEDURE situ.train TO pg_database_owner;
