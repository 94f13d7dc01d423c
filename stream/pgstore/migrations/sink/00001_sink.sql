-- +goose Up
create table levada_offset (
	job        text primary key,
	version    integer not null,
	epoch      bigint not null,
	seq        bigint not null default 0,
	token      bytea not null,
	digest     bytea not null,
	bytes      bigint not null default 0,
	bad        bigint not null default 0,
	done       boolean not null default false,
	updated_at timestamptz not null default clock_timestamp()
) with (fillfactor = 60); -- one row per job, written by each commit
create table levada_quarantine (
	job        text not null,
	seq        bigint not null,
	key        bytea not null,
	payload    bytea,
	error      text not null,
	class      text not null,
	attempts   bigint not null,
	state      text not null,
	first_seen timestamptz not null default clock_timestamp(),
	primary key (job, seq)
);
