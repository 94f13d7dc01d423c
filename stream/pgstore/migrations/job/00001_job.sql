-- +goose Up
create table levada_job (
	id                text primary key,
	n                 bigint generated always as identity, -- the order of submission
	stream            text not null,
	target            text not null,
	query             bytea,
	dedupe_key        text unique,
	priority          bigint not null,
	not_before        timestamptz not null,
	on_bad            text not null,
	max_bad           bigint not null,
	state             text not null check (state in ('ready', 'running', 'paused', 'completed', 'failed', 'cancelled')),
	epoch             bigint not null default 0,
	owner_pod         text not null default '',
	owner_pod_uid     text not null default '',
	owner_container   text not null default '',
	owner_incarnation text not null default '',
	lease_ttl         bigint not null default 0, -- microseconds
	lease_until       timestamptz,
	claimed_at        timestamptz,
	attempts          bigint not null default 0,
	no_progress       bigint not null default 0,
	records           bigint not null default 0,
	bytes             bigint not null default 0,
	bad               bigint not null default 0,
	size              bigint not null default 0,
	probe             bigint not null default 0,
	probe_until       bigint not null default 0,
	hand              bigint not null default 0,
	deaths            bigint not null default 0,
	reason            text not null default '',
	last_error        text not null default '',
	created_at        timestamptz not null,
	started_at        timestamptz,
	updated_at        timestamptz not null,
	finished_at       timestamptz,
	-- No job is forgotten: each has a time at which it is looked at next, or is final, or waits for a person.
	check (state <> 'running' or lease_until is not null)
) with (fillfactor = 60); -- commits renew the lease: room on the page, and no index on what they change, keeps that cheap
create index levada_job_ready on levada_job (priority desc, not_before) where state = 'ready';
create index levada_job_running on levada_job (priority desc) where state = 'running';
create index levada_job_newest on levada_job (n desc);
