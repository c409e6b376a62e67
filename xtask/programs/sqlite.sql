create table customer(id integer primary key, name text, city text);
create table sale(id integer primary key, customer integer, item text, cents integer, day integer);

begin;
insert into customer
  with recursive c(n) as (select 1 union all select n + 1 from c where n < :rows / 10)
  select n, printf('customer %06d', (n * 7919) % 1000003), 'city' || (n * 31 % 113) from c;
insert into sale
  with recursive s(n, r) as (
    select 1, 12345
    union all select n + 1, (r * 1103515245 + 12345) % 2147483648 from s where n < :rows)
  select n, r / 256 % (:rows / 10) + 1, 'item' || (r / 1024 % 501), r / 64 % 100000, r / 4096 % 365 from s;
commit;

create index sale_by_customer on sale(customer, day);
create index sale_by_item on sale(item);

select city, count(*), sum(cents), max(day)
  from customer join sale on sale.customer = customer.id
  group by city order by sum(cents) desc, city limit 5;
select count(*), sum(length(name)) from customer where name like '%7%' and city in ('city1', 'city7', 'city50');
select item, total from (
    select item, sum(cents) as total, rank() over (order by sum(cents) desc) as place from sale group by item)
  where place <= 3 order by place;
select a.day, count(*) from sale a join sale b on b.customer = a.customer and b.day = a.day + 1
  group by a.day order by 2 desc, 1 limit 3;

begin;
update sale set cents = cents + 1 where day % 7 = 3;
delete from sale where item in ('item3', 'item14', 'item159');
commit;
select sum(cents), count(distinct customer), group_concat(distinct day % 5) from sale;
with word(w) as (select substr(name, 10) || '-' || city from customer)
  select count(*), min(w), max(w), sum(instr(w, '99')) from word;
