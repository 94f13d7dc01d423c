#!lua flags=allow-oom
-- KEYS: state, meta. ARGV: incarnation, reader, the write that is to be replaced or "" for none, the name of this one, state.
-- Who replaces the state is the reader from then on: nobody else saves, trims or notes damage. Saving is allowed without room; see save.lua.
local meta = redis.call('HMGET', KEYS[2], 'incarnation', 'epoch', 'reader')
if meta[1] ~= ARGV[1] then return redis.error_reply('LEVADAMISSING') end
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local epoch, number, name = tonumber(meta[2]) or 0, 0, ''
if last then
	local its, count = string.match(last[1], '^(%d+)%-(%d+)$')
	name = last[2][4] or last[1] -- an id for a state that was not written here
	if tonumber(its) >= epoch then epoch, number = tonumber(its), tonumber(count) end
end
if name ~= ARGV[3] then return redis.error_reply('LEVADAREPLACED') end
if meta[3] ~= ARGV[2] then
	epoch, number = epoch + 1, 0
	redis.call('HSET', KEYS[2], 'epoch', string.format('%.0f', epoch), 'reader', ARGV[2])
end
redis.call('XADD', KEYS[1], 'MAXLEN', '=', 1, string.format('%.0f-%.0f', epoch, number + 1), 's', ARGV[5], 'w', ARGV[4])
return 1
