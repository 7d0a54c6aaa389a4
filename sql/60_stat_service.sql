-- What the encoder service does.

CREATE FUNCTION situ.service_statistics(
    OUT device text,
    OUT state text,
    OUT pid integer,
    OUT started_at timestamptz,
    OUT restarts bigint,
    OUT models integer,
    OUT model_bytes bigint,
    OUT slots integer,
    OUT slots_used integer,
    OUT queued_queries bigint,
    OUT queued_bulk bigint,
    OUT requests bigint,
    OUT vectors bigint,
    OUT tokens bigint,
    OUT batches bigint,
    OUT tokens_per_second bigint,
    OUT busy_seconds double precision,
    OUT errors bigint,
    OUT last_error text,
    OUT last_error_at timestamptz
) RETURNS SETOF record
    LANGUAGE c VOLATILE STRICT PARALLEL SAFE ROWS 1 AS 'MODULE_PATHNAME', 'service_statistics_wrapper';
COMMENT ON FUNCTION situ.service_statistics() IS 'what the encoder service does: behind the view situ.stat_service';

CREATE VIEW situ.stat_service AS SELECT * FROM situ.service_statistics();
COMMENT ON VIEW situ.stat_service IS
    'the encoder service: worker, models in memory, queue by lane, and counts since the server started; state is running, starting or not preloaded';
GRANT SELECT ON situ.stat_service TO PUBLIC;
