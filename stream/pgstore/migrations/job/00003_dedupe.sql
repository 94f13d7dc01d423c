-- +goose Up
-- A key belongs to a stream, and a cancelled job gives it free.
alter table levada_job drop constraint levada_job_dedupe_key_key;
create unique index levada_job_dedupe on levada_job (stream, dedupe_key) where state <> 'cancelled';
