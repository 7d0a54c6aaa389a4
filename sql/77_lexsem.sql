-- What lexsem bridges read out of texts.

CREATE FUNCTION situ.tokens(text text, model text DEFAULT NULL) RETURNS integer[]
    LANGUAGE c STABLE PARALLEL SAFE COST 1000 AS 'MODULE_PATHNAME', 'text_tokens_wrapper';
COMMENT ON FUNCTION situ.tokens(text, text) IS
    'ids of a text''s tokens in the model''s vocabulary, without special tokens';

CREATE FUNCTION situ.vocabulary(
    text text,
    model text,
    most bigint DEFAULT 64,
    OUT token integer,
    OUT weight real
) RETURNS SETOF record
    LANGUAGE c STABLE PARALLEL SAFE COST 10000 ROWS 64 AS 'MODULE_PATHNAME', 'text_vocabulary_wrapper';
COMMENT ON FUNCTION situ.vocabulary(text, text, bigint) IS
    'the largest weights that a masked language model gives its vocabulary for a text: log(1 + ReLU(logit))';
