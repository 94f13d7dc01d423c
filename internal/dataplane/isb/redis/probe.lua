#!lua flags=allow-oom
-- KEYS: a stream, a hash, a sorted set, none of which exists. Uses each command that Levada needs once, and leaves nothing behind: a missing permission is reported at the start.
local function use(...)
	local answer = redis.pcall(...)
	if type(answer) ~= 'table' or not answer.err then return end
	redis.pcall('UNLINK', KEYS[1], KEYS[2], KEYS[3]) -- what a script did before an error stays
	if string.find(answer.err, 'The user executing the script', 1, true) then
		error({err = "NOPERM this user has no permissions to run the '" .. string.lower((...)) .. "' command on keys that begin with levada:"})
	end
	error(answer)
end
use('UNLINK', KEYS[1], KEYS[2], KEYS[3])
use('XADD', KEYS[1], '0-1', 'f', 'v')
use('XREAD', 'COUNT', 1, 'STREAMS', KEYS[1], '0')
use('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)
use('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
use('XLEN', KEYS[1])
use('XINFO', 'STREAM', KEYS[1])
use('XGROUP', 'CREATE', KEYS[1], 'none', '0')
use('XGROUP', 'DESTROY', KEYS[1], 'none')
use('XTRIM', KEYS[1], 'MINID', '=', '0-2')
use('HSET', KEYS[2], 'f', 1)
use('HGET', KEYS[2], 'f')
use('HMGET', KEYS[2], 'f')
use('HGETALL', KEYS[2])
use('HKEYS', KEYS[2])
use('HLEN', KEYS[2])
use('HEXISTS', KEYS[2], 'f')
use('HINCRBY', KEYS[2], 'f', 1)
use('HDEL', KEYS[2], 'f')
use('ZADD', KEYS[3], 1, 'm')
use('ZRANGE', KEYS[3], '(0', '+inf', 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')
use('ZSCORE', KEYS[3], 'm')
use('ZREM', KEYS[3], 'm')
use('EXISTS', KEYS[1])
use('TIME')
use('INFO', 'memory')
use('INFO', 'replication')
use('UNLINK', KEYS[1], KEYS[2], KEYS[3])
return 1
