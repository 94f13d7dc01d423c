-- +goose Up
-- Times are microseconds since 1970.
create table levada_job (
	n                 integer primary key autoincrement, -- the order of submission
	id                text not null unique,
	stream            text not null,
	target            text not null,
	query             blob,
	dedupe_key        text unique,
	priority          integer not null,
	not_before        integer not null,
	on_bad            text not null,
	max_bad           integer not null,
	state             text not null check (state in ('ready', 'running', 'paused', 'completed', 'failed', 'cancelled')),
	epoch             integer not null default 0,
	owner_pod         text not null default '',
	owner_pod_uid     text not null default '',
	owner_container   text not null default '',
	owner_incarnation text not null default '',
	lease_ttl         integer not null default 0, -- microseconds
	lease_until       integer,
	claimed_at        integer,
	attempts          integer not null default 0,
	no_progress       integer not null default 0,
	records           integer not null default 0,
	bytes             integer not null default 0,
	bad               integer not null default 0,
	size              integer not null default 0,
	probe             integer not null default 0,
	probe_until       integer not null default 0,
	hand              integer not null default 0,
	deaths            integer not null default 0,
	reason            text not null default '',
	last_error        text not null default '',
	created_at        integer not null,
	started_at        integer,
	updated_at        integer not null,
	finished_at       integer,
	-- No job is forgotten: each has a time at which it is looked at next, or is final, or waits for a person.
	check (state <> 'running' or lease_until is not null)
);
create index levada_job_ready on levada_job (priority desc, not_before) where state = 'ready';
create index levada_job_running on levada_job (n) where state = 'running';
