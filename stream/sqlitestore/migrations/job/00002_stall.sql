-- +goose Up
-- How long a job has come no further, in microseconds; no_progress is the number of failed attempts in a row.
alter table levada_job add column stalled integer not null default 0;
alter table levada_job add column denied integer not null default 0;
alter table levada_job add column dependent integer not null default 0;
