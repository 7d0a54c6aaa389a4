-- What the encoder service does, and how to act on it.

CREATE FUNCTION situ_internal.service_statistics(
    OUT worker integer,
    OUT device text,
    OUT state text,
    OUT pid integer,
    OUT started_at timestamptz,
    OUT restarts bigint,
    OUT models integer,
    OUT model_bytes bigint,
    OUT resident_bytes bigint,
    OUT slots integer,
    OUT slots_used integer,
    OUT queued_queries bigint,
    OUT queued_bulk bigint,
    OUT requests bigint,
    OUT shared bigint,
    OUT cancelled bigint,
    OUT errors bigint,
    OUT vectors bigint,
    OUT tokens bigint,
    OUT batches bigint,
    OUT tokens_per_second bigint,
    OUT batch_fill double precision,
    OUT busy_seconds double precision,
    OUT query_wait double precision[],
    OUT query_run double precision[],
    OUT bulk_wait double precision[],
    OUT bulk_run double precision[],
    OUT last_error text,
    OUT last_error_at timestamptz
) RETURNS SETOF record
    LANGUAGE c VOLATILE STRICT PARALLEL SAFE ROWS 1 AS 'MODULE_PATHNAME', 'service_statistics_wrapper';
COMMENT ON FUNCTION situ_internal.service_statistics() IS 'what the encoder service does: behind the view situ.stat_service';

CREATE VIEW situ.stat_service AS
    SELECT worker, device, state, pid, started_at, restarts, models, model_bytes, resident_bytes, slots, slots_used,
           queued_queries, queued_bulk, requests, shared, cancelled, errors, vectors, tokens, batches,
           tokens_per_second, batch_fill, busy_seconds,
           query_wait[1] AS query_wait_p50_ms, query_wait[2] AS query_wait_p95_ms, query_wait[3] AS query_wait_p99_ms,
           query_run[1] AS query_run_p50_ms, query_run[2] AS query_run_p95_ms, query_run[3] AS query_run_p99_ms,
           bulk_wait[1] AS bulk_wait_p50_ms, bulk_wait[2] AS bulk_wait_p95_ms, bulk_wait[3] AS bulk_wait_p99_ms,
           bulk_run[1] AS bulk_run_p50_ms, bulk_run[2] AS bulk_run_p95_ms, bulk_run[3] AS bulk_run_p99_ms,
           last_error, last_error_at
      FROM situ_internal.service_statistics();
COMMENT ON VIEW situ.stat_service IS
    'the encoder service, one row a worker: device, models in memory, queue by lane, how long items waited and ran, and counts since the server started; state is running, starting, lost, standby or not preloaded; shared and the last error are for members of pg_read_all_stats';
GRANT SELECT ON situ.stat_service TO PUBLIC;

CREATE FUNCTION situ_internal.service_models() RETURNS jsonb
    LANGUAGE c VOLATILE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'service_models_wrapper';
COMMENT ON FUNCTION situ_internal.service_models() IS
    'what the encoder service has in memory, as of the last second: behind the view situ.stat_models';

CREATE VIEW situ.stat_models AS
    SELECT m.worker, m.device, r.name, m.path, m.fingerprint, m.precision, m.bytes, m.requests, m.tokens_per_second, m.idle_seconds
      FROM pg_catalog.jsonb_to_recordset(situ_internal.service_models())
           m(worker integer, device text, path text, fingerprint text, precision text, bytes bigint, requests bigint, tokens_per_second bigint,
             idle_seconds bigint)
      LEFT JOIN situ_internal.model_registry r USING (path, fingerprint);
COMMENT ON VIEW situ.stat_models IS
    'models in the encoder service''s memory; name is the one in this database, those of other databases are shown to members of pg_read_all_stats';
GRANT SELECT ON situ.stat_models TO PUBLIC;

CREATE FUNCTION situ_internal.service_requests(
    OUT id bigint,
    OUT worker integer,
    OUT pid integer,
    OUT datid oid,
    OUT usesysid oid,
    OUT lane text,
    OUT model text,
    OUT state text,
    OUT items bigint,
    OUT done bigint,
    OUT tokens bigint,
    OUT since timestamptz
) RETURNS SETOF record
    LANGUAGE c VOLATILE STRICT PARALLEL RESTRICTED ROWS 10 AS 'MODULE_PATHNAME', 'service_requests_wrapper';
COMMENT ON FUNCTION situ_internal.service_requests() IS
    'requests that the encoder service has: behind the view situ.stat_requests';

CREATE VIEW situ.stat_requests AS
    SELECT r.id, r.worker, r.pid, r.datid, d.datname, r.usesysid, u.rolname AS usename, a.application_name, r.lane, r.model,
           r.state, r.items, r.done, r.tokens, r.since
      FROM situ_internal.service_requests() r
      LEFT JOIN pg_catalog.pg_database d ON d.oid = r.datid
      LEFT JOIN pg_catalog.pg_roles u ON u.oid = r.usesysid
      LEFT JOIN pg_catalog.pg_stat_get_activity(NULL) a ON a.pid = r.pid;
COMMENT ON VIEW situ.stat_requests IS
    'what waits or runs in the encoder service now, one row a call; of other roles'' calls only members of pg_read_all_stats see more than who';
GRANT SELECT ON situ.stat_requests TO PUBLIC;

CREATE FUNCTION situ.cancel_request(id bigint) RETURNS boolean
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cancel_request_wrapper';
COMMENT ON FUNCTION situ.cancel_request(bigint) IS
    'ends the statement that waits for a request of situ.stat_requests; false where there is none';

CREATE FUNCTION situ.load_model(
    model text DEFAULT NULL,
    OUT device text,
    OUT seconds double precision,
    OUT bytes bigint,
    OUT "precision" text,
    OUT tokens_per_second double precision
) RETURNS SETOF record
    LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 1 AS 'MODULE_PATHNAME', 'load_model_wrapper';
COMMENT ON FUNCTION situ.load_model(text) IS
    'loads a model into the encoder service and runs a batch: time, bytes, precision and speed';

CREATE FUNCTION situ.unload_model(model text DEFAULT NULL) RETURNS bigint
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'unload_model_wrapper';
COMMENT ON FUNCTION situ.unload_model(text) IS
    'drops a model from the encoder service''s memory and returns the bytes of its weights';
