#!lua flags=allow-oom
-- KEYS: place, values. ARGV: key, value, the revision that it must have now, or "any". Returns the new revision.
if redis.call('EXISTS', KEYS[1]) == 0 then return redis.error_reply('LEVADANONE') end
if ARGV[3] ~= 'any' then
	local stored = redis.call('HGET', KEYS[2], ARGV[1])
	local revision = stored and string.match(stored, '^(%d+) ') or '0'
	if revision ~= ARGV[3] then return redis.error_reply('LEVADACONFLICT') end
end
local given = redis.call('HINCRBY', KEYS[1], 'revision', 1)
redis.call('HSET', KEYS[2], ARGV[1], string.format('%.0f', given) .. ' ' .. ARGV[2])
return given
