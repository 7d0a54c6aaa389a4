-- Training of bridges.

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
    replace boolean DEFAULT false
)
    LANGUAGE c AS 'MODULE_PATHNAME', 'train_wrapper';
COMMENT ON PROCEDURE situ.train(text, text, regclass, text, regclass, regclass, text, text, jsonb, bigint, boolean) IS
    'trains a bridge (adapter, lexsem, situate) in this statement and stores it in situ.bridges: passages is a relation with the columns id, document, ordinal and body, or index a text index whose documents are cut as it cuts them; pairs a relation with query and passage (the id, or the row''s first column under index); without pairs, queries are made from the passages; rows are read as the caller in one snapshot; cancelling the statement ends the training';
