-- +goose Up
-- How long a job has come no further, in microseconds; no_progress is the number of failed attempts in a row.
alter table levada_job
	add column stalled   bigint not null default 0,
	add column denied    bigint not null default 0,
	add column dependent bigint not null default 0;
