-- +goose Up
-- A key belongs to a stream, and a cancelled job gives it free. SQLite cannot drop the old constraint, so its column stays, empty.
alter table levada_job rename column dedupe_key to dedupe_key_v1;
alter table levada_job add column dedupe_key text;
update levada_job set dedupe_key = dedupe_key_v1, dedupe_key_v1 = null;
create unique index levada_job_dedupe on levada_job (stream, dedupe_key) where state <> 'cancelled';
