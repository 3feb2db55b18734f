-- The records of several instances. The same tables and columns as in `schema.rs`, whose comments hold here.
CREATE TABLE cases (
    seq            BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id             TEXT NOT NULL UNIQUE,
    device         TEXT NOT NULL,
    task           TEXT NOT NULL,
    received_ms    BIGINT NOT NULL,
    payload_sha256 BYTEA NOT NULL,
    payload_bytes  BIGINT NOT NULL,
    content_type   TEXT NOT NULL,
    header         BYTEA NOT NULL,
    state          BIGINT NOT NULL,
    reason         TEXT,
    agrees         BIGINT,
    declined       TEXT,
    review         BIGINT NOT NULL DEFAULT 0,
    instance       TEXT NOT NULL DEFAULT ''
);
CREATE INDEX cases_by_state ON cases (instance, seq) WHERE state = 0;
CREATE INDEX cases_by_device ON cases (device, seq);
CREATE INDEX cases_for_review ON cases (seq) WHERE review = 1;
CREATE INDEX cases_disagreed ON cases (seq) WHERE agrees = 0;
CREATE TABLE corrections (seq BIGINT PRIMARY KEY, at_ms BIGINT NOT NULL);
CREATE TABLE payloads (seq BIGINT PRIMARY KEY, bytes BYTEA NOT NULL);
-- Pictures do not get smaller.
ALTER TABLE payloads ALTER COLUMN bytes SET STORAGE EXTERNAL;
CREATE TABLE verdicts (
    seq      BIGINT NOT NULL,
    revision BIGINT NOT NULL,
    given_ms BIGINT NOT NULL,
    verdict  BYTEA NOT NULL,
    PRIMARY KEY (seq, revision)
);
CREATE TABLE devices (
    device       TEXT PRIMARY KEY,
    status       BYTEA,
    status_ms    BIGINT,
    telemetry    BYTEA,
    telemetry_ms BIGINT,
    reported     TEXT,
    reported_ms  BIGINT,
    desired      TEXT,
    desired_ms   BIGINT
);
CREATE TABLE device_cases (
    device    TEXT PRIMARY KEY,
    cases     BIGINT NOT NULL DEFAULT 0,
    agreed    BIGINT NOT NULL DEFAULT 0,
    disagreed BIGINT NOT NULL DEFAULT 0,
    case_ms   BIGINT
);
CREATE TABLE device_events (
    seq    BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    device TEXT NOT NULL,
    at_ms  BIGINT NOT NULL,
    kind   TEXT NOT NULL,
    json   TEXT NOT NULL
);
CREATE INDEX device_events_by_device ON device_events (device, seq);
CREATE TABLE totals (instance TEXT PRIMARY KEY, json TEXT NOT NULL);
CREATE TABLE spent (
    month    BIGINT NOT NULL,
    answerer TEXT NOT NULL,
    micro    BIGINT NOT NULL,
    PRIMARY KEY (month, answerer)
);
-- Who lives, and until when nobody doubts it.
CREATE TABLE instances (
    instance TEXT PRIMARY KEY,
    process  BIGINT NOT NULL,
    until_ms BIGINT NOT NULL
);
