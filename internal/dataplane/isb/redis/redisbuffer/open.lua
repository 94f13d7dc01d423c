#!lua flags=allow-oom
-- KEYS: log, heads, meta. ARGV: "create" or "attach", incarnation and tag if it is created. Returns incarnation and tag.
local incarnation = redis.call('HGET', KEYS[3], 'incarnation')
local there = redis.call('EXISTS', KEYS[1]) == 1
if incarnation then
	if not there then return redis.error_reply('LEVADAMISSING') end
	return {incarnation, redis.call('HGET', KEYS[3], 'tag')}
end
if there then return redis.error_reply('LEVADAFOREIGN') end
if ARGV[1] ~= 'create' then return redis.error_reply('LEVADANONE') end
redis.call('UNLINK', KEYS[2])
-- A group is what creates a stream without an entry. Nobody reads by it.
redis.call('XGROUP', 'CREATE', KEYS[1], 'none', '0', 'MKSTREAM')
redis.call('XGROUP', 'DESTROY', KEYS[1], 'none')
redis.call('HSET', KEYS[3], 'incarnation', ARGV[2], 'tag', ARGV[3], 'epoch', 0, 'bytes', 0, 'ids', 0, 'rotated', 0)
return {ARGV[2], ARGV[3]}
