#!lua flags=allow-oom
-- KEYS: state, meta. ARGV: incarnation, epoch, number within the epoch, state, reader. Returns 0 if a later one is there.
-- Saving is allowed without room: what is done is saved before it is removed, which makes room.
local meta = redis.call('HMGET', KEYS[2], 'incarnation', 'reader')
if meta[1] ~= ARGV[1] then return redis.error_reply('LEVADAMISSING') end
if meta[2] ~= ARGV[5] then return redis.error_reply('LEVADAFENCED') end
-- A script that is killed by an error is not undone, so the order of ids is looked at first.
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if last then
	local epoch, number = string.match(last[1], '^(%d+)%-(%d+)$')
	epoch, number = tonumber(epoch), tonumber(number)
	if epoch > tonumber(ARGV[2]) or epoch == tonumber(ARGV[2]) and number >= tonumber(ARGV[3]) then return 0 end
end
redis.call('XADD', KEYS[1], 'MAXLEN', '=', 1, ARGV[2] .. '-' .. ARGV[3], 's', ARGV[4])
return 1
