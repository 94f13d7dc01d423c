#!lua flags=allow-oom
-- KEYS: meta. ARGV: incarnation, epoch or 0 for the next, reader. Returns the epoch.
local meta = redis.call('HMGET', KEYS[1], 'incarnation', 'epoch')
if meta[1] ~= ARGV[1] then return redis.error_reply('LEVADAMISSING') end
local epoch, wanted = tonumber(meta[2]) or 0, tonumber(ARGV[2])
if wanted == 0 then wanted = epoch + 1 end
if wanted < epoch then return redis.error_reply('LEVADAFENCED') end
redis.call('HSET', KEYS[1], 'epoch', string.format('%.0f', wanted), 'reader', ARGV[3])
return wanted
