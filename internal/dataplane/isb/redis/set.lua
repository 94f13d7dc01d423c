#!lua flags=allow-oom
-- KEYS: place, values. ARGV: key, value, the revision that it must have now, or "any". Returns the new revision.
if redis.call('EXISTS', KEYS[1]) == 0 then return redis.error_reply('LEVADANONE') end
if ARGV[3] ~= 'any' then
	local stored = redis.call('HGET', KEYS[2], ARGV[1])
	local revision = stored and string.match(stored, '^(%d+) ') or '0'
	if revision ~= ARGV[3] then return redis.error_reply('LEVADACONFLICT') end
end
-- A master that failed over may have lost the end of what was written, and would give its revisions again: see package redisstore.
local history = string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)') or ''
if redis.call('HGET', KEYS[1], 'history') ~= history then
	redis.call('HINCRBY', KEYS[1], 'revision', 16777216)
	redis.call('HSET', KEYS[1], 'history', history)
end
local given = redis.call('HINCRBY', KEYS[1], 'revision', 1)
redis.call('HSET', KEYS[2], ARGV[1], string.format('%.0f', given) .. ' ' .. ARGV[2])
return given
