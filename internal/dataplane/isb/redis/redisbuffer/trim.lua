#!lua flags=allow-oom
-- KEYS: log, heads, meta. ARGV: incarnation, reader, sequence, most entries to remove. Removes what is before the sequence, the first of it.
-- Returns whether there is more of it. Removing needs room in no case.
local meta = redis.call('HMGET', KEYS[3], 'incarnation', 'reader')
if meta[1] ~= ARGV[1] or redis.call('EXISTS', KEYS[1]) == 0 then return redis.error_reply('LEVADAMISSING') end
if meta[2] ~= ARGV[2] then return redis.error_reply('LEVADAFENCED') end
local most = tonumber(ARGV[4])
local heads = redis.call('XRANGE', KEYS[2], '-', '(0-' .. ARGV[3], 'COUNT', most)
local size = 0
for _, head in ipairs(heads) do size = size + (tonumber(head[2][4]) or 0) end
local to = '0-' .. ARGV[3]
local more = #heads == most
-- What follows the last of these is left for the next call.
if more then to = '0-' .. string.format('%.0f', tonumber(string.sub(heads[#heads][1], 3)) + 1) end
redis.call('XTRIM', KEYS[1], 'MINID', '=', to)
redis.call('XTRIM', KEYS[2], 'MINID', '=', to)
if size > 0 and redis.call('HINCRBY', KEYS[3], 'bytes', -size) < 0 then redis.call('HSET', KEYS[3], 'bytes', 0) end
return more and 1 or 0
