#!lua flags=allow-oom
-- KEYS: meta, order, heads, payloads. ARGV: name, head, payload, bytes by which letters may pass the memory limit. A letter that is there stays as it is.
if redis.call('HEXISTS', KEYS[3], ARGV[1]) == 1 then return 0 end
local memory = redis.call('INFO', 'memory')
local used, limit = tonumber(string.match(memory, 'used_memory:(%d+)')), tonumber(string.match(memory, 'maxmemory:(%d+)'))
if used and limit and limit > 0 and used + #ARGV[2] + #ARGV[3] > limit + tonumber(ARGV[4]) then
	return redis.error_reply('OOM command not allowed when used memory > maxmemory and the reserve for dead letters is used')
end
local number = redis.call('HINCRBY', KEYS[1], 'number', 1)
redis.call('ZADD', KEYS[2], number, ARGV[1])
redis.call('HSET', KEYS[4], ARGV[1], ARGV[3])
redis.call('HSET', KEYS[3], ARGV[1], ARGV[2])
return 1
