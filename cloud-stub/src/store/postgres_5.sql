-- Whole samples that are wanted of their devices; see `schema.rs`.
ALTER TABLE cases ADD COLUMN wanted_ms BIGINT;
ALTER TABLE cases ADD COLUMN other_sha256 BYTEA;
CREATE INDEX cases_wanted ON cases (device) WHERE wanted_ms IS NOT NULL;
