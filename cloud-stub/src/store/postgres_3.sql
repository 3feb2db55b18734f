-- What became of each device; see `schema.rs`.
CREATE TABLE trends (
    device   TEXT NOT NULL,
    bucket_s BIGINT NOT NULL,
    at_s     BIGINT NOT NULL,
    page     BYTEA NOT NULL,
    UNIQUE (device, bucket_s, at_s)
);
