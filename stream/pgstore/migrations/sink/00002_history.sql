-- +goose Up
-- What became of each attempt at a record, as JSON.
alter table levada_quarantine add column history text not null default '';
