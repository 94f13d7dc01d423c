-- +goose Up
-- Times are microseconds since 1970.
create table levada_offset (
	job        text not null primary key,
	version    integer not null,
	epoch      integer not null,
	seq        integer not null default 0,
	token      blob not null,
	digest     blob not null,
	bytes      integer not null default 0,
	bad        integer not null default 0,
	done       integer not null default 0,
	updated_at integer not null
) without rowid;
create table levada_quarantine (
	job        text not null,
	seq        integer not null,
	key        blob not null,
	payload    blob,
	error      text not null,
	class      text not null,
	attempts   integer not null,
	state      text not null,
	first_seen integer not null,
	primary key (job, seq)
);
