-- What spot checks have come to; see `schema.rs`.
CREATE TABLE spot_checks (
    device  TEXT NOT NULL,
    model   TEXT NOT NULL,
    version TEXT NOT NULL,
    cloud   TEXT NOT NULL,
    at_ms   BIGINT NOT NULL,
    counted BYTEA NOT NULL,
    UNIQUE (model, version, cloud, device)
);
